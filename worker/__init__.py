"""An event-driven worker that runs OpenAI jobs from RabbitMQ."""
