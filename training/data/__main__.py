"""`python -m training.data FOLDER` is `python -m training.check_dataset FOLDER`."""

from ..check_dataset import main

main()
