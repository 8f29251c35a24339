// Node's three file interfaces, in the current directory.
const fs = require('fs');
const path = require('path');
const assert = require('assert');

async function main() {
  fs.mkdirSync('sync/deep/er', { recursive: true });
  for (let i = 0; i < 200; i++) fs.writeFileSync(`sync/${i}.txt`, `file ${i}\n`);
  fs.appendFileSync('sync/0.txt', 'appended\n');
  fs.renameSync('sync/1.txt', 'sync/deep/one.txt');
  fs.copyFileSync('sync/2.txt', 'sync/deep/two.txt');
  fs.symlinkSync('../2.txt', 'sync/deep/link');
  fs.linkSync('sync/3.txt', 'sync/deep/three');
  fs.chmodSync('sync/4.txt', 0o600);
  fs.utimesSync('sync/5.txt', 1000, 2000);
  fs.truncateSync('sync/6.txt', 3);
  fs.rmSync('sync/7.txt');
  assert.strictEqual(fs.readFileSync('sync/deep/link', 'utf8'), 'file 2\n');
  assert.strictEqual(fs.readdirSync('sync').length, 199);

  await fs.promises.mkdir('async');
  await Promise.all(Array.from({ length: 200 }, (_, i) => fs.promises.writeFile(`async/${i}`, Buffer.alloc(i * 100, i))));
  const sizes = await Promise.all(Array.from({ length: 200 }, async (_, i) => (await fs.promises.stat(`async/${i}`)).size));
  assert.deepStrictEqual(sizes, Array.from({ length: 200 }, (_, i) => i * 100));
  await fs.promises.cp('async', 'copied', { recursive: true });
  await fs.promises.rm('async', { recursive: true });

  const handle = await fs.promises.open('handle', 'w+');
  await handle.write('hello', 0);
  await handle.write('world', 1000);
  await handle.sync();
  await handle.datasync();
  await handle.close();

  await new Promise((resolve, reject) => {
    const out = fs.createWriteStream('stream');
    out.on('finish', resolve).on('error', reject);
    for (let i = 0; i < 1000; i++) out.write(`line ${i}\n`);
    out.end();
  });
  assert.strictEqual(fs.readFileSync('stream', 'utf8').split('\n').length, 1001);
  fs.mkdtempSync(path.join(process.cwd(), 'temporary-'));
  assert.strictEqual(fs.realpathSync('sync/../handle'), path.join(process.cwd(), 'handle'));
}

main().catch((error) => { console.error(error); process.exit(1); });
