"""How the shipped pair, the family and the tables of the documentation were made, from trained models to pages."""
