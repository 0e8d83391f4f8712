"`python -m vrshq_nb` is the program `vrshq`; `accelerate launch -m vrshq_nb` runs several."

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
