"""One file, one command: read artefacts, call the core, write one artefact."""
