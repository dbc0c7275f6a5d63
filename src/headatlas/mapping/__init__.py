"""Ranks: the exact engine, the plan, and the run that fills an atlas."""
