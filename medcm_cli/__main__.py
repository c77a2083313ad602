"""``python -m medcm_cli`` is ``medcm``."""

from medcm_cli.cli import main

if __name__ == "__main__":
    main()
