"""Corpora: real Python source and generated programs, a tokenizer for them, and batches of their tokens."""

from sparse_lens.data.corpus import (
    DatasetSource,
    Document,
    FileFilter,
    SourceFolder,
    StandardLibrary,
    collect_documents,
)
from sparse_lens.data.encode import encode_documents
from sparse_lens.data.manifest import ManifestReport, rebuild_documents, verify_manifest
from sparse_lens.data.prepare import DataConfig, prepare_data, rebuild_data
from sparse_lens.data.programs import generate_program
from sparse_lens.data.stream import TokenData, TrainingData
from sparse_lens.data.streaming import StreamData
from sparse_lens.data.tokenizer import END_OF_TEXT, load_tokenizer, save_tokenizer, train_tokenizer

__all__ = [
    "END_OF_TEXT",
    "DataConfig",
    "DatasetSource",
    "Document",
    "FileFilter",
    "ManifestReport",
    "SourceFolder",
    "StandardLibrary",
    "StreamData",
    "TokenData",
    "TrainingData",
    "collect_documents",
    "encode_documents",
    "generate_program",
    "load_tokenizer",
    "prepare_data",
    "rebuild_data",
    "rebuild_documents",
    "save_tokenizer",
    "train_tokenizer",
    "verify_manifest",
]
