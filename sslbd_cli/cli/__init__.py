"""What the terminal sees: options, spec strings, progress, reports, plots, man pages."""
