"""How much of a feature the others give away (EASE, arXiv:1905.03375), and structure against capacity."""
