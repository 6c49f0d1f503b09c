"""Two sides of runs held against each other, from records alone: sides → noise → verdicts."""
