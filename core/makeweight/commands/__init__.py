"""The command `trainer`: options and recipes, the verbs, the report."""
