"""What every command shares: arguments, exit codes, and how far a long piece of work is."""
