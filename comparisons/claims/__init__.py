"""The neighbouring claims, re-tested on a pair of models: estimators, controls, and a verdict by a rule fixed beforehand."""
