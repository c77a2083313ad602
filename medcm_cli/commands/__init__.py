"""What each subcommand of ``medcm`` reads, says and calls: they talk, the other rooms compute."""
