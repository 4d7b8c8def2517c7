"""What the terminal sees: options, spec strings, progress, results."""
