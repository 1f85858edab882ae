"""Tasks: what is forgotten, retained and scored, for text and for images."""
