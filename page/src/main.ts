// the page: a list of images, the picture, what can be asked, and the answer
import { SLICE_TYPE } from '@niivue/niivue'
import { Scene } from './scene'
import { type Answer, type Job, type Option, type State, server } from './server'

const element = <T extends HTMLElement>(id: string) => document.getElementById(id) as T
const WINDOWS: Record<string, [number, number] | null> = {
  automatic: null, 'CT soft tissue': [-160, 240], 'CT lung': [-1350, 150], 'CT bone': [-500, 1500], 'CT brain': [0, 80],
}
const VIEWS: Record<string, SLICE_TYPE> = {
  All: SLICE_TYPE.MULTIPLANAR, Axial: SLICE_TYPE.AXIAL, Coronal: SLICE_TYPE.CORONAL, Sagittal: SLICE_TYPE.SAGITTAL, '3-D': SLICE_TYPE.RENDER,
}
const WAIT = 250 // ms between looks at a job
const MICROSCOPIC = 0.05 // mm, below which lengths are said in µm

let state: State
let current = -1
let clicks: number[][] = []
let chosen: number | null = null
let job: number | null = null
let unit: 'mm' | 'µm' = 'mm'
const scene = new Scene(({ mm, vox, value }) => {
  const index = vox.map((one) => one.toFixed(0)).join(', ')
  element('place').textContent = `${lengths(mm)} ${unit}   [${index}]   ${Number(value.toPrecision(6))}`
})

/** Lengths in mm in the unit of the image that is shown. */
const lengths = (mm: number[]) => mm.map((one) => (unit === 'mm' ? one : 1000 * one).toFixed(1)).join(', ')

function say(text: string, fault = false): void {
  const message = element('message')
  message.textContent = text
  message.classList.toggle('fault', fault)
}

const attempt = (work: () => Promise<void>) => () => work().catch((error: Error) => say(error.message, true))

function listCases(): void {
  const wanted = element<HTMLInputElement>('search').value.toLowerCase()
  const items = state.cases.filter(({ name }) => name.toLowerCase().includes(wanted)).map(({ id, name }) => {
    const button = document.createElement('button')
    button.textContent = name
    button.title = name
    button.ariaCurrent = String(id === current)
    button.classList.toggle('answered', id in state.answers)
    button.onclick = attempt(() => open(id))
    const item = document.createElement('li')
    item.append(button)
    return item
  })
  element('cases').replaceChildren(...items)
}

async function open(id: number): Promise<void> {
  current = id
  clicks = []
  chosen = null
  say('')
  listCases()
  const header = await server.header(id)
  unit = Math.max(...header.spacing) < MICROSCOPIC ? 'µm' : 'mm'
  await scene.show(server.image(id), header.name)
  const level = header.shown.join(' x ')
  const coarse = level === header.shape.slice(1).join(' x ') ? '' : `, shown at ${level}`
  const thinned = coarse + (header.every.some((step) => step > 1) ? `, every ${header.every.join(' x ')} voxels shown` : '')
  const spacing = header.spacing.map((step) => Number((unit === 'mm' ? step : 1000 * step).toPrecision(3))).join(' x ')
  element('header').textContent = `${header.format}, ${header.shape.slice(1).join(' x ')}, ${spacing} ${unit}${thinned}`
  setWindow('automatic')
  showClicks()
  await show(state.answers[id] ?? null)
}

function setWindow(name: string): void {
  element<HTMLSelectElement>('window').value = name
  const range = WINDOWS[name]
  if (range) scene.window = range
  else scene.reset()
  const [low, high] = scene.window
  element<HTMLInputElement>('low').value = String(Number(low.toPrecision(5)))
  element<HTMLInputElement>('high').value = String(Number(high.toPrecision(5)))
}

function optionField({ name, type, help }: Option): HTMLElement {
  const label = document.createElement('label')
  const input = document.createElement('input')
  input.name = name
  input.type = type === 'str' ? 'text' : 'number'
  input.step = type === 'int' ? '1' : 'any'
  const note = document.createElement('small')
  note.textContent = help
  label.append(name, input, note)
  return label
}

function showClicks(): void {
  const line = element('clicks')
  line.hidden = state?.needed !== 'click'
  const text = clicks.map(lengths).join('; ')
  line.textContent = clicks.length ? `clicks: ${text} ${unit}` : 'Put the crosshair into the organ, then Predict. Shift adds a click.'
}

function askedFor(): Record<string, unknown> {
  const options: Record<string, unknown> = {}
  for (const input of element('options').querySelectorAll('input')) {
    const option = state.options.find(({ name }) => name === input.name)
    if (input.value !== '') options[input.name] = option?.repeated ? [input.value] : input.value
  }
  if (state.needed === 'click') {
    if (!clicks.length && scene.place) clicks = [scene.place.mm]
    options.click = clicks.map((click) => click.join(','))
  }
  return options
}

async function predict(): Promise<void> {
  const id = current
  const asked = askedFor()
  showClicks()
  job = (await server.predict(id, asked)).job
  element('cancel').hidden = false
  element('progress').hidden = false
  element<HTMLButtonElement>('predict').disabled = true
  try {
    const done = await finished(job)
    if (done.answer) state.answers[id] = done.answer
    say(done.state === 'done' ? '' : done.message || done.state, done.state === 'failed')
    if (done.answer && id === current) await show(done.answer)
    listCases()
  } finally {
    job = null
    clicks = []
    element('cancel').hidden = true
    element('progress').hidden = true
    element<HTMLButtonElement>('predict').disabled = false
  }
}

async function finished(number: number): Promise<Job> {
  const bar = element<HTMLProgressElement>('progress')
  for (;;) {
    const found = await server.job(number)
    if (!['waiting', 'running'].includes(found.state)) return found
    if (found.total) {
      bar.max = found.total
      bar.value = found.done
    } else bar.removeAttribute('value')
    await new Promise((resolve) => setTimeout(resolve, WAIT))
  }
}

async function show(answer: Answer | null): Promise<void> {
  scene.clear()
  element('answer').hidden = !answer
  element('saved').textContent = ''
  if (!answer) return
  showSummary(answer)
  showPoints(answer)
  showFiles(answer)
  for (const { name, kind } of shownFiles(answer)) {
    if (kind === 'mesh') await scene.mesh(server.file(current, name), name)
    else await scene.overlay(server.file(current, name), name, kind === 'labels', opacity())
  }
}

/** Meshes and label maps; the image that was made, where there is neither. */
function shownFiles(answer: Answer) {
  const solid = answer.files.filter(({ kind }) => kind === 'mesh' || kind === 'labels')
  return solid.length || answer.points.length ? solid : answer.files.filter(({ kind }) => kind === 'image').slice(0, 1)
}

const opacity = () => Number(element<HTMLInputElement>('opacity').value)

function showSummary(answer: Answer): void {
  const parts = Object.entries(answer.summary).flatMap(([name, value]) => {
    const [term, detail] = [document.createElement('dt'), document.createElement('dd')]
    term.textContent = name.replaceAll('_', ' ')
    detail.textContent = typeof value === 'number' ? String(Number(value.toPrecision(4))) : value
    return [term, detail]
  })
  element('summary').replaceChildren(...parts)
}

function showFiles(answer: Answer): void {
  const items = answer.files.map(({ name }) => {
    const item = document.createElement('li')
    item.textContent = name
    return item
  })
  element('files').replaceChildren(...items)
}

function showPoints(answer: Answer): void {
  scene.points(answer.points, chosen)
  const rows = answer.points.map(({ name, position, radius }, index) => {
    const row = document.createElement('tr')
    row.classList.toggle('chosen', index === chosen)
    const cells = [name, position ? lengths(position) : 'absent', radius === null ? '' : `± ${lengths([radius])}`]
    for (const text of cells) row.insertCell().textContent = text
    row.onclick = () => {
      chosen = index
      if (position) scene.go(position)
      showPoints(answer)
    }
    const tools = row.insertCell()
    tools.append(tool('move', `move ${name} to the crosshair`, answer, index, () => scene.place?.mm ?? null))
    tools.append(tool('absent', `${name} is absent`, answer, index, () => null))
    return row
  })
  element('points').replaceChildren(...rows)
}

function tool(text: string, title: string, answer: Answer, index: number, place: () => number[] | null): HTMLButtonElement {
  const button = document.createElement('button')
  button.textContent = text
  button.title = title
  button.ariaLabel = title
  button.onclick = (event) => {
    event.stopPropagation()
    attempt(async () => {
      answer.points = await server.move(current, index, place())
      chosen = index
      showPoints(answer)
    })()
  }
  return button
}

async function save(): Promise<void> {
  const { folder, files } = await server.save(current)
  element('saved').textContent = `${files.length} files in ${folder}`
}

function prepare(): void {
  for (const name of Object.keys(WINDOWS)) element<HTMLSelectElement>('window').add(new Option(name))
  for (const [name, type] of Object.entries(VIEWS)) {
    const button = document.createElement('button')
    button.textContent = name
    button.onclick = () => scene.slices(type)
    element('slices').append(button)
  }
  element('window').onchange = (event) => setWindow((event.target as HTMLSelectElement).value)
  for (const id of ['low', 'high']) {
    element(id).onchange = () => {
      scene.window = [Number(element<HTMLInputElement>('low').value), Number(element<HTMLInputElement>('high').value)]
    }
  }
  element('opacity').oninput = () => { scene.opacity = opacity() }
  element('search').oninput = listCases
  element('predict').onclick = attempt(predict)
  element('cancel').onclick = attempt(async () => { if (job !== null) await server.cancel(job) })
  element('save').onclick = attempt(save)
  element('view').addEventListener('mouseup', (event) => {
    if (event.shiftKey && state.needed === 'click' && scene.place) {
      clicks.push(scene.place.mm)
      showClicks()
    }
  })
  document.addEventListener('keydown', (event) => {
    if ((event.target as HTMLElement).tagName === 'INPUT') return
    if (event.key === 'Enter' && state.task) attempt(predict)()
    if (event.key === 'j' || event.key === 'k') attempt(() => step(event.key === 'j' ? 1 : -1))()
    if (event.key === 's' && current in state.answers) attempt(save)()
  })
}

async function step(by: number): Promise<void> {
  const next = current + by
  if (next >= 0 && next < state.cases.length) await open(next)
}

async function start(): Promise<void> {
  state = await server.state()
  history.replaceState(null, '', '/') // the token isn't shown any longer
  element('model').hidden = state.task === null
  element('task').textContent = state.task ?? ''
  element('options').replaceChildren(...state.options.filter(({ name }) => name !== 'click').map(optionField))
  prepare()
  await scene.attach(element<HTMLCanvasElement>('view'))
  if (state.cases.length) await open(state.cases[0].id)
  document.body.dataset.ready = 'true'
}

attempt(start)()
