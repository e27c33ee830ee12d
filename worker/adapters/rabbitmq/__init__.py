"""RabbitMQ: connections, topology, consuming, publishing."""
