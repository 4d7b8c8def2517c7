"""Files in, files out: the kinds of artefacts, their headers, checks and histories."""
