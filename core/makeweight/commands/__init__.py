"""The command line `trainer`: options, recipes, verbs, and the report."""
