"""Models by name, their layers, their state, and their structure with its records."""
