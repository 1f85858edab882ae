"""Run directories at a URI."""
