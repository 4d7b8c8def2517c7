"""The small GPU core library that all commands share: tensors in, tensors out."""
