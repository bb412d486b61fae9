from agentcore.cli import main

main()
