"""The offline stage: corpora, projection, the teacher, and the build that turns them into a cache."""
