"""The op inside other libraries' trainers: one module per library, nothing happens on import."""
