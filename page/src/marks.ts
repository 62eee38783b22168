// lines and words over the slices, at places in mm; each part of the page has its own
import { app, element } from './app'
import type { Tile } from './scene'

export interface Mark { places: number[][]; text?: string; colour: string; dot?: boolean; closed?: boolean; width?: number }

const SVG = 'http://www.w3.org/2000/svg'
const IN_SLICE = 0.51 // voxels from a slice that a place may be away to be seen in it
const parts = new Map<string, Mark[]>()

/** Show these in place of what this part had shown before. */
export function setMarks(part: string, marks: Mark[]): void {
  parts.set(part, marks)
  drawMarks()
}

/** Draw all of them where the picture shows their places now. */
export function drawMarks(): void {
  const all = [...parts.values()].flat()
  const shapes = all.length ? app.scene.tiles().flatMap((tile) => all.flatMap((mark) => drawn(mark, tile))) : []
  element('marks').replaceChildren(...shapes)
}

function drawn({ places, text, colour, dot, closed, width = 2 }: Mark, tile: Tile): SVGElement[] {
  const points = places.map((place) => tile.at(place))
  if (!points.length || points.some(({ away }) => away > IN_SLICE)) return []
  const [first, last] = [points[0], points[points.length - 1]]
  const found: SVGElement[] = []
  const path = points.map(({ x, y }) => `${x.toFixed(1)},${y.toFixed(1)}`).join(' ')
  if (points.length > 1) found.push(shape(closed ? 'polygon' : 'polyline', { points: path, fill: 'none', stroke: colour, 'stroke-width': width, 'stroke-linejoin': 'round', 'stroke-linecap': 'round' }))
  if (dot) for (const { x, y } of new Set([first, last])) found.push(shape('circle', { cx: x, cy: y, r: 3.5, fill: 'none', stroke: colour, 'stroke-width': 2 }))
  if (text) {
    const [end, x] = last.x > tile.left + 0.7 * tile.width ? ['end', last.x - 8] : ['start', last.x + 8]
    const words = shape('text', { x, y: last.y - 6, fill: colour, stroke: '#000', 'stroke-width': 3, 'paint-order': 'stroke', 'text-anchor': end, 'font-size': 13, 'font-family': 'sans-serif' })
    words.textContent = text
    found.push(words)
  }
  return found
}

function shape(kind: string, own: Record<string, string | number>): SVGElement {
  const made = document.createElementNS(SVG, kind)
  for (const [name, value] of Object.entries(own)) made.setAttribute(name, String(value))
  return made
}

/** What is drawn, as a picture of that many pixels. */
export async function marksPicture(width: number, height: number): Promise<HTMLImageElement> {
  const copy = element('marks').cloneNode(true) as Element
  const { width: shown, height: high } = element('marks').getBoundingClientRect()
  for (const [name, value] of Object.entries({ xmlns: SVG, width, height, viewBox: `0 0 ${shown} ${high}` })) copy.setAttribute(name, String(value))
  const image = new Image(width, height)
  image.src = `data:image/svg+xml,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`
  await image.decode()
  return image
}
