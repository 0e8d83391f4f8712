"`python -m vrshq_nb` is the program `vrshq`; so is `accelerate launch -m vrshq_nb`, in several processes."
from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
