"""What users have: folders, archives and packed files, read as streams."""
