"""`python -m sparse_lens` is `sparse-lens`."""

from sparse_lens.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
