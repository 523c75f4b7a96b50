// What Node's http does, through a gateway before the tests' own backend: client.js PORT.
'use strict';

const assert = require('node:assert');
const http = require('node:http');

const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
const base = { host: '127.0.0.1', port: Number(process.argv[2]), agent };
const sockets = new Set();

setTimeout(() => { throw new Error('it takes too long'); }, 20000).unref();

/** Sends one request; `send` writes its body. */
function ask(options, send = (request) => request.end()) {
  return new Promise((resolve, reject) => {
    const request = http.request({ ...base, ...options }, (response) => {
      const pieces = [];
      response.on('data', (piece) => pieces.push(piece));
      response.on('error', reject);
      response.on('end', () => resolve({ response, body: Buffer.concat(pieces) }));
    });
    request.on('socket', (socket) => sockets.add(socket));
    request.on('error', reject);
    send(request);
  });
}

async function keepAlive() {
  for (let number = 0; number < 100; number += 1) {
    const { response, body } = await ask({ path: `/bytes/${number}` });
    assert.strictEqual(response.statusCode, 200);
    assert.deepStrictEqual(body, Buffer.from(Array.from({ length: number }, (_, at) => at % 251)));
  }
}

async function trailers() {
  const headers = { Trailer: 'X-Sum', TE: 'trailers', Connection: 'keep-alive, TE' };
  const sent = Buffer.alloc(50000, 'chunk');
  const { response, body } = await ask({ method: 'POST', path: '/echo/chunked', headers }, (request) => {
    for (let at = 0; at < sent.length; at += 5000) {
      request.write(sent.subarray(at, at + 5000));
    }
    request.addTrailers({ 'X-Sum': '50000' });
    request.end();
  });
  assert.deepStrictEqual(body, sent);
  assert.strictEqual(response.headers.trailer, 'X-Sum');
  assert.deepStrictEqual({ ...response.trailers }, { 'x-sum': '50000' });
}

async function expectation() {
  let wasTold = false;
  const headers = { Expect: '100-continue', 'Content-Length': 5 };
  const { body } = await ask({ method: 'POST', path: '/echo', headers }, (request) => {
    request.on('continue', () => {
      wasTold = true;
      request.end('hello');
    });
    request.flushHeaders();
  });
  assert.ok(wasTold);
  assert.strictEqual(body.toString(), 'hello');
}

async function head() {
  const { response, body } = await ask({ method: 'HEAD', path: '/bytes/1000' });
  assert.strictEqual(response.headers['content-length'], '1000');
  assert.strictEqual(body.length, 0);
}

function upgrade() {
  return new Promise((resolve, reject) => {
    const headers = { Connection: 'Upgrade', Upgrade: 'echo' };
    const request = http.request({ ...base, agent: false, path: '/upgrade', headers }, (response) => {
      reject(new Error(`no upgrade: ${response.statusCode}`));
    });
    request.on('error', reject);
    request.on('upgrade', (response, socket, first) => {
      assert.strictEqual(response.headers.upgrade, 'echo');
      let got = first.toString();
      socket.on('error', reject);
      socket.on('data', (piece) => {
        got += piece;
        if (got === 'hello') {
          socket.end();
        }
      });
      socket.on('end', () => resolve(assert.strictEqual(got, 'hello')));
      socket.write('hello');
    });
    request.end();
  });
}

async function main() {
  await keepAlive();
  await trailers();
  await expectation();
  await head();
  assert.strictEqual(sockets.size, 1, 'the connection was not kept');
  await upgrade();
  agent.destroy();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
