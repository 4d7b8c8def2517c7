"""What a CLIP model adds to an image encoder: its text tower, tokens, prompts, and the space that both share."""
