"""`python -m entropatch.cli`, which is what `accelerate launch -m entropatch.cli …` runs."""

from entropatch.cli import main

main()
