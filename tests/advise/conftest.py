"""The tour's own input needs scikit-learn and a synthesiser, both in the extra `tour`, which `make test` installs."""
