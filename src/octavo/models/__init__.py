"""Model families: one short file each, and what they have in common."""
