"""Read and write artefacts: their kinds, headers, checks and histories."""
