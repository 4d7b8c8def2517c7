"""The small GPU core library: tensors in, tensors out; files only in artefact.py, storage.py and loader.py."""
