"""Scores, intervals and calibration from ranks.

Everything here is plain NumPy on small arrays: an atlas can be scored again, with another k or τ, on a
machine that has neither torch nor the model.
"""
