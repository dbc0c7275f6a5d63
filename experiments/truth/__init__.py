"""Models in which it is known what a head does, and how well each lens finds it."""
