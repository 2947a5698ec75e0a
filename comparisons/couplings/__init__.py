"""Couplings (the bridges of arXiv:2511.13653) of a dense and a weight-sparse model, what runs through them, and steering."""
