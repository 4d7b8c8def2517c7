"""Write the man pages."""
