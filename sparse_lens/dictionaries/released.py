"""SAEs that others have released, fetched by SAELens' own loader and read like any folder of SAELens'."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sparse_lens.dictionaries.sae_training import require_sae_lens
from sparse_lens.dictionaries.saelens import SAELensDictionary
from sparse_lens.dictionaries.saelens_files import load_saelens
from sparse_lens.dictionaries.transcoder import TranscoderDictionary


def load_released(release: str, sae_id: str, folder: str | Path | None = None) -> SAELensDictionary | TranscoderDictionary:
    """A released SAE by the names that SAELens knows it by, as a dictionary at the hook that it was trained on.

    This asks the network, unless the hub's cache holds it. In `folder`, if one is given, a copy is kept that `load_saelens` reads
    without SAELens and without a network. Raises `SparseLensError` without sae-lens, what SAELens' loader raises for an unknown
    name, and what `load_saelens` raises for an architecture that is not known here.

    Example: `load_released("gpt2-small-mlp-tm", "blocks.0.hook_mlp_out")`.
    """
    require_sae_lens()
    from sae_lens import SAE

    sae = SAE.from_pretrained(release, sae_id)
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) / "sae" if folder is None else Path(folder)
        sae.save_model(kept)
        return load_saelens(kept)
