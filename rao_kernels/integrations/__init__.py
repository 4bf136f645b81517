"""The op inside other libraries' trainers, one module per library; importing changes nothing."""
