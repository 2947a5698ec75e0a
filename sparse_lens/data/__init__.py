"""Corpora: real Python source and generated programs, a tokenizer for them, and batches of their tokens."""

from __future__ import annotations

from sparse_lens.data.corpus import (
    DatasetSource as DatasetSource,
    Document as Document,
    FileFilter as FileFilter,
    SourceFolder as SourceFolder,
    StandardLibrary as StandardLibrary,
    collect_documents as collect_documents,
)
from sparse_lens.data.manifest import (
    ManifestReport as ManifestReport,
    rebuild_documents as rebuild_documents,
    verify_manifest as verify_manifest,
)
from sparse_lens.data.prepare import (
    DataConfig as DataConfig,
    encode_documents as encode_documents,
    prepare_data as prepare_data,
)
from sparse_lens.data.programs import generate_program as generate_program
from sparse_lens.data.stream import TokenData as TokenData
from sparse_lens.data.tokenizer import (
    END_OF_TEXT as END_OF_TEXT,
    load_tokenizer as load_tokenizer,
    save_tokenizer as save_tokenizer,
    train_tokenizer as train_tokenizer,
)
