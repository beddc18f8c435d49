// The page at /_ring of a running cluster, looked at with a real browser.
//
//     PLAYWRIGHT_DIR=DIR node tests/page.mjs BASE-URL [ADDRESS]
//
// DIR holds node_modules/playwright-core (npm install playwright-core; no browser is downloaded, CHROMIUM names the one
// that is there, /usr/bin/chromium if unset). BASE-URL is a node's or nginx's, such as http://127.0.0.1:8001. With
// ADDRESS the test also waits for that member to be shown without a lease: kill it before or meanwhile.
//
// What the picture says can be read from it: every arc of the broad band has data-partition and data-owner (a member's
// id), every row of the table data-member. They are held against what /_status answers at the same epoch.
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { join, resolve } from 'node:path';

const WAIT_MS = 8000, LEASE_WAIT_MS = 30000, POLL_MS = 100;
const KEYS = ['photos/2026/a.jpg', 'a', 'kä/ /?#%', 'a/../b', '%61', '<b>bold</b>'];

const [base, address] = process.argv.slice(2);
if (!base) {
  console.error('usage: PLAYWRIGHT_DIR=DIR node tests/page.mjs BASE-URL [ADDRESS]');
  process.exit(2);
}
const require = createRequire(join(resolve(process.env.PLAYWRIGHT_DIR ?? '.'), 'from.js'));
const { chromium } = require('playwright-core');

let passed = 0, failed = 0;

// Waits for `reason` to answer nothing: then what the sentence says is true. What it answers last is why it is not.
async function expect(sentence, reason, wait_ms = WAIT_MS) {
  const end = Date.now() + wait_ms;
  let why;
  do {
    try { why = await reason(); } catch (error) { why = error.message; }
    if (why) await new Promise(done => setTimeout(done, POLL_MS));
  } while (why && Date.now() < end);
  if (why) failed++; else passed++;
  console.log(`${why ? 'FAILED' : 'ok'}  ${sentence}${why ? `: ${why.slice(0, 300)}` : ''}`);
}

const differ = (what, shown, reported) => shown === reported ? '' : `${what} is ${shown}, not ${reported}`;

async function ask(path) {
  const answer = await fetch(new URL(path, base), { signal: AbortSignal.timeout(WAIT_MS) });
  if (!answer.ok) throw new Error(`${path} answers ${answer.status}`);
  return answer.json();
}

async function page_open(browser, options) {
  const context = await browser.newContext(options), page = await context.newPage(), faults = [];
  page.on('pageerror', error => faults.push(error.message));
  page.on('console', message => { if (message.type() === 'error') faults.push(message.text()); });
  page.on('request', request => {
    const { origin, protocol } = new URL(request.url());
    if (origin !== new URL(base).origin && protocol !== 'data:') faults.push(`asks ${request.url()}`);
  });
  await page.goto(new URL('/_ring', base).href);
  return { page, faults };
}

// owners is [rank][partition]; partitions, colours and areas are those of the broad band's arcs, in the order drawn.
const picture_read = page => page.evaluate(() => {
  const bands = [...document.querySelectorAll('#circle .owner, #circle .replica')];
  const arcs = bands.map(band => [...band.querySelectorAll('path')]);
  return {
    partitions: arcs.length ? arcs[0].map(arc => arc.dataset.partition).join() : '',
    owners: arcs.map(band => band.map(arc => arc.dataset.owner)),
    colours: arcs.length ? arcs[0].map(arc => getComputedStyle(arc).fill) : [],
    areas: arcs.length ? arcs[0].map(arc => arc.getBBox()).map(({ width, height }) => width + height) : [],
    rows: [...document.querySelectorAll('#rows tr')].map(row => row.dataset.member),
    discs: document.querySelectorAll('#discs .disc').length,
    epoch: /epoch (\d+)/.exec(document.getElementById('about').textContent)?.[1],
  };
});

async function test_picture(page) {
  const read = async () => {
    const status = await ask('/_status'), picture = await picture_read(page);
    const unlike = differ('the epoch shown', picture.epoch, String(status.epoch));
    if (unlike) throw new Error(unlike);
    return { status, picture };
  };
  await expect('the title says what the page is', async () => differ('it', await page.title(), 'estoraje: the ring'));
  await expect('the circle has 1024 partitions, each drawn once', async () => {
    const { picture } = await read();
    return differ('the list of them', picture.partitions, Array.from({ length: 1024 }, (_, p) => p).join())
      || (picture.areas.every(area => area > 1) ? '' : 'some have no area');
  });
  await expect('every partition shows all its owners in ring order', async () => {
    const { status, picture } = await read();
    const reported = status.ring[0].map((_, rank) => status.ring.map(owners => status.members[owners[rank]].id));
    return differ('the number of bands', picture.owners.length, reported.length)
      || (String(picture.owners) === String(reported) ? '' : 'an arc shows another owner than /_status reports');
  });
  await expect('partitions have one colour if and only if they have one owner', async () => {
    const { picture: { owners: [first], colours } } = await read();
    const count = list => new Set(list).size, pairs = first.map((owner, p) => owner + colours[p]);
    return differ('the number of colours', count(colours), count(first))
      || differ('the number of owners with a colour', count(pairs), count(first));
  });
  await expect('the table and the circle have every member once', async () => {
    const { status, picture } = await read(), ids = status.members.map(({ id }) => id);
    return differ('the rows', picture.rows.toSorted().join(), ids.sort().join())
      || differ('the number of discs', picture.discs, ids.length);
  });
  await expect('the table says each member\'s address', async () => {
    const { status: { members } } = await read();
    for (const { id, address } of members) {
      const text = await page.locator(`#rows tr[data-member="${id}"] th`).innerText();
      if (!text.includes(address)) return `${address} is not in "${text}"`;
    }
  });
}

async function test_keys(page) {
  for (const key of KEYS) {
    await page.fill('#key', key);
    await expect(`the key ${key} is shown where /_nodes reports`, async () => {
      const reported = await ask('/_nodes/' + encodeURIComponent(key));
      const shown = name => page.locator(`#answer .${name}`).innerText();
      const transform = await page.locator('#needle').evaluate(needle => needle.style.transform);
      const turn = Number(/rotate\(([\d.e-]+)turn\)/.exec(transform)?.[1]);
      return differ('the partition', await shown('partition'), String(reported.partition))
        || differ('the hash', await shown('hash'), reported.hash)
        || differ('the number of owners', await page.locator('#answer .owners .one').count(), reported.owners.length)
        || differ('the place of the needle', Math.floor(turn * 1024), reported.partition);
    });
  }
  await page.fill('#key', '');
  await expect('without a key nothing points at the circle', async () =>
    differ('the number of lines', await page.locator('#threads path, #needle path').count(), 0));
}

async function test_lost(page) {
  await expect(`${address} is shown without a lease, in the table, on the circle and in the state`, async () => {
    const member = (await ask('/_status')).members.find(member => member.address === address);
    if (!member) return 'it is no member';
    const row = page.locator(`#rows tr[data-member="${member.id}"]`), name = await row.locator('.name').innerText();
    const disc = page.locator('#discs .disc', { has: page.locator(`.name:text-is("${name}")`) });
    return differ('the table', await row.locator('.lease').innerText(), 'lost')
      || differ('the label', await disc.locator('.lease').textContent(), 'no lease')
      || ((await page.locator('#state').innerText()).includes(name) ? '' : 'the state does not name it');
  }, LEASE_WAIT_MS);
}

// What a page of another site may try with a node that this browser reaches: a form, and fetch. (Another port of the same
// name would be the same site.)
async function test_other_site(browser) {
  const server = createServer((_, answer) => answer.setHeader('Content-Type', 'text/html').end('<title>another site</title>'));
  await new Promise(done => server.listen(0, 'localhost', done));
  const site = `http://localhost:${server.address().port}/`, page = await (await browser.newContext()).newPage();
  const rejected = async (url, act) => {
    await page.goto(site);
    const answered = page.waitForResponse(url, { timeout: WAIT_MS });
    await page.evaluate(act, [url]);
    const answer = await answered, from = (await answer.request().allHeaders())['sec-fetch-site'];
    return differ('the site', from, 'cross-site')
      || ([400, 403].includes(answer.status()) ? '' : `it is ${answer.status()}`);
  };
  for (const path of ['/other-site', '/other-site?op=add', '/_mail']) {
    const url = new URL(path, base).href;
    await expect(`a form of another site is rejected at ${path}`, () => rejected(url, ([action]) => {
      const form = Object.assign(document.createElement('form'), { method: 'post', enctype: 'text/plain', action });
      form.innerHTML = '<input name="1" value="2">';
      document.body.append(form);
      form.submit();
    }));
    await expect(`fetch of another site is rejected at ${path}`, () => rejected(url, ([to]) => {
      fetch(to, { mode: 'no-cors', method: 'POST', body: '1' }).catch(() => {});
    }));
    for (const method of ['POST', 'PUT', 'DELETE'])
      await expect(`${method} at ${path} is not answered to a page of another site`, async () => {
        const outcome = await page.evaluate(([to, how]) =>
          fetch(to, { method: how, body: '1' }).then(() => 'an answer', () => 'an error'), [url, method]);
        return differ('the outcome', outcome, 'an error');
      });
  }
  await expect('another site stored nothing', async () =>
    differ('the status', (await fetch(new URL('/other-site', base))).status, 404));
  server.close();
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync'],
});
try {
  const { page, faults } = await page_open(browser, { viewport: { width: 1280, height: 900 }, reducedMotion: 'reduce' });
  await test_picture(page);
  await test_keys(page);
  const phone = await page_open(browser, { viewport: { width: 360, height: 740 }, colorScheme: 'dark' });
  await expect('on a telephone nothing is wider than the screen', async () => {
    await phone.page.locator('#rows tr').first().waitFor({ timeout: WAIT_MS });
    return differ('the width', await phone.page.evaluate(() => document.documentElement.scrollWidth), 360);
  });
  await test_other_site(browser);
  if (address) await test_lost(page);
  await expect('the page has no faults in the console and asks nobody else', () => {
    return [...new Set([...faults, ...phone.faults])].join('; ');
  }, 0);
} finally {
  await browser.close();
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
