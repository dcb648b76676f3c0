"""``python -m moe_optuna``: the `moe-optuna` command."""

from moe_optuna.cli import main

if __name__ == "__main__":
    main()
