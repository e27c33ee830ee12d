// A producer in JavaScript: nothing but AMQP (npm install amqplib) and JSON.
// AMQP_URL names the broker. The job's id may be given as an argument; the same id again is
// answered from the stored reply and costs nothing.

"use strict";

const amqp = require("amqplib");

const jobId = process.argv[2] || "javascript-1";
const job = {
  version: 1,
  kind: "completion",
  job_id: jobId,
  tenant: "globex",
  request: {
    model: "gpt-6-luna",
    messages: [{ role: "user", content: "Name three musical instruments." }],
  },
  options: { timeout_seconds: 60 },
};

async function main() {
  const url = process.env.AMQP_URL || "amqp://guest:guest@127.0.0.1:5672/";
  const connection = await amqp.connect(url);
  try {
    const channel = await connection.createConfirmChannel();
    const { queue } = await channel.assertQueue("", { exclusive: true });
    const reply = new Promise((resolve, reject) => {
      const late = new Error("no reply within two minutes: is a worker running? Sent again, the job is not run twice");
      setTimeout(() => reject(late), 120_000).unref();
      channel.on("error", reject);
      channel.on("return", () => reject(new Error("no queue takes this kind of job")));
      channel.consume(queue, (message) => resolve(JSON.parse(message.content)), { noAck: true });
    });
    channel.publish("openai.jobs", "completion", Buffer.from(JSON.stringify(job)), {
      contentType: "application/json",
      persistent: true,
      mandatory: true,
      replyTo: queue,
      correlationId: jobId,
    });
    return (await Promise.all([reply, channel.waitForConfirms()]))[0];
  } finally {
    await connection.close();
  }
}

main().then(
  (reply) => {
    console.log(reply.status === "succeeded" ? reply.output_text : `${reply.error.code}: ${reply.error.message}`);
    process.exitCode = reply.status === "succeeded" ? 0 : 1;
  },
  (error) => {
    console.error(error.message);
    process.exitCode = 1;
  },
);
