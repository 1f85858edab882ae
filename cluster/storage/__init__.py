"""Run directories at a URI: copies of their files, and a lease in place of a lock."""
