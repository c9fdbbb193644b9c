// SPDX-License-Identifier: Apache-2.0
// An HTTP server on node; _loads/runtimes.py knows its answers.
'use strict';
const crypto = require('crypto');
const http = require('http');

function chain(seed, count) {
  const values = [];
  for (let i = 0; i < count; i++) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    values.push(seed);
  }
  return values;
}

function tree(depth) {
  return depth === 0 ? null : { left: tree(depth - 1), right: tree(depth - 1), depth };
}

function total(node) {
  return node === null ? 0 : total(node.left) + total(node.right) + node.depth;
}

function fail(depth) {
  if (depth === 0) throw new Error('bottom');
  try {
    fail(depth - 1);
  } finally {
    String(depth);
  }
}

async function failures(number) {
  let caught = 0;
  for (let turn = 0; turn < 10; turn++) {
    try {
      await Promise.resolve(turn);
      fail(turn);
    } catch (error) {
      caught += turn;
    }
  }
  return number + caught;
}

const answers = {
  '/hash': (n) => crypto.createHash('sha256').update(`${n},`.repeat(200)).digest('hex'),
  '/sort': (n) => chain(n, 100).sort((a, b) => a - b).join(','),
  '/tree': (n) => String(n + total(tree(8))),
  '/fail': async (n) => String(await failures(n)),
};

async function answer(request, response) {
  const parts = [];
  for await (const part of request) parts.push(part);
  const url = new URL(request.url, 'http://localhost');
  const body = request.method === 'POST' ? Buffer.concat(parts).reverse()
    : Buffer.from(await answers[url.pathname](Number(url.searchParams.get('n'))));
  response.writeHead(200, { 'Content-Length': body.length });
  response.end(body);
}

const server = http.createServer(answer);
server.keepAliveTimeout = 0;
server.listen(0, '127.0.0.1', () => console.log(`port ${server.address().port}`));
