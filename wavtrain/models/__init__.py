"""The models of transformers, as they are trained here: fast, exact, every process in step."""
