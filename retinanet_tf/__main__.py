"""`python -m retinanet_tf` is the `retinanet` command."""

from retinanet_tf.cli.main import main

if __name__ == "__main__":
    main()
