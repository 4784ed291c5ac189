"""Two plugins that change a network's structure: `halves` its layers, `drop` its hidden neurons."""
