from octosim.cli import main

main()
